"""Networks whose features judges of whole sets compare: a file each, shared by every judge that reads them."""
