"""Messages between server and clients by partition: grid, roster, compression, credentials."""
