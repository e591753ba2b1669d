//! A DHCP server that commits every lease to a mirror before it answers.
