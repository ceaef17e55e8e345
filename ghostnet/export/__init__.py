"""Samples in the formats that others read: PNG, NPZ, DICOM and NIfTI."""
