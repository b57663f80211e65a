"""Where datasets come from: public logs and the simulator."""
