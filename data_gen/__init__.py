"""Data sets of R-SQAIR: bouncing balls and moving MNIST, their HDF5 files and the tf.data pipeline that reads them."""
