"""The HTTP service round a Recommender: `rgalign serve BUNDLE`. docs/http.md says what it promises.

framing, protocol   bytes of a connection -> whole requests within bounds of size, number and time
strict_json, asked  a body -> a checked request
app, admin          the routes of the public and of the loopback listener
boundary            what every request gets: an id, a count, a span, one log line, one answer
lifecycle, server   readiness, drain, signals
client              the typed client; needs httpx and none of the server's stack
"""
