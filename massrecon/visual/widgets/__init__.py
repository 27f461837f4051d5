"""Explorers for JupyterLab: sliders over the plain functions of `massrecon.visual.explore`.

They need the extra ``jupyter``. Each opens with events and models that come with massrecon::

    from massrecon.visual.widgets.topology import TopologyExplorer

    TopologyExplorer()
"""
