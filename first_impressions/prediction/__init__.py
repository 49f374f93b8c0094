"""Scores of new clips and pictures, drawings, saliency maps, the web page."""
