"""The templates of the cards. A package, so that whatever installs hf_motive brings them along."""
