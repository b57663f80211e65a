"""TensorRT-LLM as a reasoner: its PyTorch backend with a model class of ours that returns the last token's state."""
