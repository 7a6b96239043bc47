"""The parts of gpu.py: bits (cases.py, planes.py and ways.py say of what), sanitizer, speed."""
