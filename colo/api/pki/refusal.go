package pki

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// RefusalError is a connection that TLS did not let come about, with what to do.
type RefusalError struct {
	Server Identity // who was expected
	Addr   string
	Remedy string // empty if nothing better is known than the error itself
	Err    error
}

func (e *RefusalError) Error() string {
	text := fmt.Sprintf("tls with %s at %s: %v", e.Server, e.Addr, e.Err)
	if e.Remedy != "" {
		text += " (" + e.Remedy + ")"
	}
	return text
}

func (e *RefusalError) Unwrap() error { return e.Err }

// refused adds what a person can do about a failed handshake.
func (c *Credentials) refused(server Identity, addr string, err error) error {
	return &RefusalError{Server: server, Addr: addr, Err: err, Remedy: remedy(server, c.Identity(), c.files.Trust, err)}
}

func remedy(server, own Identity, trust string, err error) string {
	var name x509.HostnameError
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &name):
		who, idErr := IdentityOf(name.Certificate)
		switch {
		case idErr != nil:
			return "what answers there is not of coloctl: correct the address"
		case who == own:
			return fmt.Sprintf("%s answers there, which is this one's own name: correct the address, or give one of the two another name and certificate", who)
		default:
			return fmt.Sprintf("%s answers there: correct the name or the address in this host's configuration", who)
		}
	case errors.As(err, &unknown):
		return fmt.Sprintf("its certificate is of another authority than those in %s: issue both from one, and bring that ca.crt to both hosts", trust)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		if now := time.Now(); invalid.Cert != nil && now.Before(invalid.Cert.NotBefore) {
			return fmt.Sprintf("its certificate begins on %s: the clock of one of the hosts is wrong", invalid.Cert.NotBefore.Format(time.DateTime))
		}
		return fmt.Sprintf("its certificate has ended: issue a new one with coloctl pki issue --renew %s, and bring it to that host", server)
	}
	return ""
}
