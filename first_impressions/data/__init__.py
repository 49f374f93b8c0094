"""Labels, speakers, splits, face chips; other people's tables, pickles and archives."""
