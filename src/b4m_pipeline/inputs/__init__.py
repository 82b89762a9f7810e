"""From folders of pictures to an encoded training set."""
