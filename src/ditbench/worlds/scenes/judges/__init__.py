"""The networks that judge pictures of scenes; all of them are trained on renders by recipe/judges.py."""
