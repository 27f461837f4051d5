"""What the explorers show, as plain functions: arguments in, results and a figure out.

Every function here returns an `Exploration` and needs no Jupyter. The class of the same subject in
`massrecon.visual.widgets` puts sliders on its arguments, and the notebook runs either::

    from massrecon.visual.explore.topology import explore_topology

    found = explore_topology("p p > A A, (A > a B, B > b C)")
    found.figure.show()
"""
