"""Pages: what ``report.html`` of a run shows, and the drawings that a comparison's page shares with it."""
