"""Is leaving early worth it on this machine? Times of networks in the forms they would be deployed in."""
