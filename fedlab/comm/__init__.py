"""Messages between server and clients by partition: grid, replies, roster, compression, credentials."""
