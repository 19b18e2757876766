"""What a run leaves for the reader: trace dumps (`traces.py`) and the HTML report (`page.py`)."""
