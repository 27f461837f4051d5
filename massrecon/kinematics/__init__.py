"""Kinematics: maths on four-momenta and decay topologies; knows no file and no model."""
