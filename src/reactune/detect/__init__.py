"""Personal data in texts: found by form, by names and by models; replaced by placeholders."""
