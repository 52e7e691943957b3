"""The widgets of the panels: thin, each over a controller that knows no widgets."""
