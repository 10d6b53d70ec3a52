"""The notebooks as a course: run and timed, as a site, as copies for students; `make` calls it."""
