"""Files on disk below every other room: written whole or not at all, and the folder of what is kept between runs."""
