"""Where the metrics of a run go while it runs: TensorBoard's files, and the services and stores of ``track``."""
