// Package pki makes and uses the certificates with which nodes, witnesses and operators know each other.
//
// # Files
//
// The authority lives in a folder of its own, on one machine, best not on a node: ca.pem (key and certificate of the
// authority that signs) and ca.crt (all authorities that are trusted). Everybody else has two files: NAME.pem, the own key with its
// certificate, and a copy of ca.crt. Key and certificate are one file so that they are replaced by one rename and never belong to
// different pairs. Files with a key have mode 0600; reading one that others may read is refused ([ErrLooseMode]).
//
// # Identity
//
// A certificate says who somebody is by a URI (urn:coloctl:ROLE:NAME) and by a DNS name made from it ([Identity.ServerName]), which
// is what a client asks for, whatever address it dials. So addresses can change without new certificates, and a node's
// certificate doesn't pass for a witness. Host names and addresses can be put in as well, for other tools.
//
// # Rotation
//
// [Rotate] makes a new authority and keeps the old one trusted. The order is: Rotate, give the new ca.crt to everybody, issue
// everybody's certificate anew, [Retire], give ca.crt to everybody again. Nothing has to be stopped at any step: [Credentials] look
// at their files at each handshake and take what is new, if it is whole; otherwise they go on with what they had.
//
// # Limits
//
// There is no revocation list: what must be locked out before its end needs a rotation. Connections that are open outlive
// the end of their certificates. Certificates are checked against the machine's clock; they begin a day before they are made.
//
// # Concurrency
//
// All methods of [Credentials] may be called concurrently. The functions that write take a lock on the authority's folder, so two at
// the same time follow each other.
package pki
