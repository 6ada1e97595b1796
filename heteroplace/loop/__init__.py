"""The loop: metrics → targets → plan → action, again and again, safe against kill -9."""
