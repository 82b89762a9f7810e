"""Inputs that mean harm or are broken: each ends in what is right, or in one clear line."""
