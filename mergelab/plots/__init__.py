"""What was found as a plotly figure, one function a picture. Knows no widget."""
