"""Labels, speakers, splits and their division, face chips; other people's tables, pickles and archives."""
