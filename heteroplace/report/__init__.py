"""``heteroplace report``: the results of a batch experiment as one HTML page that needs no network.

The page is drawn here, not in the browser: charts are SVG text, tables are HTML. Only the pair of
placements runs a script. So the page prints, reads without JavaScript, and can be tested as text.
"""
