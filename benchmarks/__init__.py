"""Measurements against what else people would use; `./run bench` lists them.

Each module measures all contestants alternately in one run, so that whatever else the machine does falls on all of them, and
tells medians and ratios: absolute times differ from machine to machine, ratios hardly do. A contestant whose library is not
installed is left out, and said to be.
"""
