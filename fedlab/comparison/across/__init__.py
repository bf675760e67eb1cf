"""Several comparisons, each of them one data set: tests over data sets, and their tables, page and diagram."""
