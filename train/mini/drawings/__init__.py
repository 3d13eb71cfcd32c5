"""The drawings that scenes are made of, one JSON file a style; see NOTICE for where they come from."""
