"""`kedro studio`: the project in a web browser, on this machine alone."""
