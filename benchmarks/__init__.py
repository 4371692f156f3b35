"""One harness for every number that the project quotes: cases, contenders, rows, and what is made of rows."""
