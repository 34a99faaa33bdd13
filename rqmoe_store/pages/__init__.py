"""Reports as HTML pages: one file each, with plots and styles in it, which loads nothing from elsewhere."""
