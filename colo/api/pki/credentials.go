package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Files of one identity.
type Files struct {
	Identity string // NAME.pem
	Trust    string // ca.crt
}

// Credentials are an identity in use. They follow their files.
type Credentials struct {
	files Files

	mu     sync.Mutex
	seen   [2]stamp // of the files when they were last tried, good or bad
	now    *material
	reload error
}

type material struct {
	id    Identity
	cert  tls.Certificate
	trust *x509.CertPool
}

// stamp tells a file from its successor. Files are replaced by renames, so the inode alone nearly does.
type stamp struct {
	ino   uint64
	size  int64
	mtime time.Time
	mode  fs.FileMode
}

func stampOf(path string) (stamp, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return stamp{}, err
	}
	s := stamp{size: fi.Size(), mtime: fi.ModTime(), mode: fi.Mode()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		s.ino = st.Ino
	}
	return s, nil
}

// Load reads the files. An identity that its own ca.crt doesn't vouch for is refused. One that has ended isn't: a daemon must be able to
// start with it, to say so ([Credentials.Err]) and to do what it can do without its peers.
func Load(f Files) (*Credentials, error) {
	c := &Credentials{files: f}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = c.stamps()
	var err error
	if c.now, err = read(f); err != nil {
		return nil, err
	}
	return c, nil
}

func read(f Files) (*material, error) {
	own, err := readIdentityFile(f.Identity)
	if err != nil {
		return nil, err
	}
	trust, err := readTrust(f.Trust)
	if err != nil {
		return nil, err
	}
	m := &material{id: own.id, cert: own.cert, trust: x509.NewCertPool()}
	for _, c := range trust {
		m.trust.AddCert(c)
	}
	_, err = own.cert.Leaf.Verify(x509.VerifyOptions{
		Roots: m.trust, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, CurrentTime: own.cert.Leaf.NotAfter.Add(-time.Second),
	})
	if err != nil {
		return nil, damaged(f.Identity, "with %s: %w", f.Trust, err)
	}
	return m, nil
}

func (c *Credentials) stamps() (out [2]stamp) {
	// What can't be seen has the zero stamp; reading it says why.
	out[0], _ = stampOf(c.files.Identity)
	out[1], _ = stampOf(c.files.Trust)
	return out
}

// current looks whether the files have changed and takes them if they are good.
func (c *Credentials) current() *material {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.stamps()
	if now == c.seen {
		return c.now
	}
	m, err := read(c.files)
	if err == nil && m.id != c.now.id {
		err = fmt.Errorf("%w: %s now belongs to %s, not to %s; that needs a restart", ErrIdentity, c.files.Identity, m.id, c.now.id)
	}
	c.reload = err
	if err == nil {
		c.now = m
	}
	c.seen = now
	return c.now
}

// Err returns nil if all is well: otherwise why the files as they are now aren't used (what was good before is used on), or
// [ErrExpired].
func (c *Credentials) Err() error {
	m := c.current()
	c.mu.Lock()
	err := c.reload
	c.mu.Unlock()
	leaf, now := m.cert.Leaf, time.Now()
	if now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
		err = errors.Join(err, fmt.Errorf("%w: %s is valid from %s to %s (issue a new one with coloctl pki issue --renew %s, or correct this host's clock)",
			ErrExpired, c.files.Identity, leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339), m.id))
	}
	return err
}

// Identity returns whose credentials they are. It never changes.
func (c *Credentials) Identity() Identity { return c.current().id }

// NotAfter returns when the certificate ends.
func (c *Credentials) NotAfter() time.Time { return c.current().cert.Leaf.NotAfter }

// Server returns a configuration for a server that takes only clients with a certificate of one of the given roles (none given: of any). It
// follows the files.
func (c *Credentials) Server(roles ...Role) *tls.Config {
	base := &tls.Config{MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAndVerifyClientCert}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		m := c.current()
		return &tls.Config{
			MinVersion:   tls.VersionTLS13,
			Certificates: []tls.Certificate{m.cert},
			ClientAuth:   tls.RequireAndVerifyClientCert,
			ClientCAs:    m.trust,
			// Without tickets everybody is verified each time.
			SessionTicketsDisabled: true,
			VerifyConnection:       func(cs tls.ConnectionState) error { return checkRole(&cs, roles) },
		}, nil
	}
	// Whoever looks for a certificate in the outer configuration, as http.Server does, finds one.
	base.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		m := c.current()
		return &m.cert, nil
	}
	return base
}

func checkRole(cs *tls.ConnectionState, roles []Role) error {
	id, err := PeerIdentity(cs)
	if err != nil {
		return err
	}
	if len(roles) > 0 && !slices.Contains(roles, id.Role) {
		return fmt.Errorf("%w: %s isn't one of %v", ErrIdentity, id, roles)
	}
	return nil
}

// Client returns a configuration for one connection to the given server, from the files as they are now. For longer use there is [Credentials.Dialer].
func (c *Credentials) Client(server Identity) *tls.Config {
	m := c.current()
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{m.cert},
		RootCAs:      m.trust,
		ServerName:   server.ServerName(),
		VerifyConnection: func(cs tls.ConnectionState) error {
			id, err := PeerIdentity(&cs)
			if err == nil && id != server {
				err = fmt.Errorf("%w: %s answered instead of %s", ErrIdentity, id, server)
			}
			return err
		},
	}
}

// Dialer returns a function for http.Transport.DialTLSContext and the like. It dials with dial (nil: the plain one), reads the files anew for each
// connection, and accepts the given server only.
func (c *Credentials) Dialer(server Identity, dial func(ctx context.Context, network, addr string) (net.Conn, error)) func(ctx context.Context, network, addr string) (net.Conn, error) {
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		raw, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		conn := tls.Client(raw, c.Client(server))
		if err := conn.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(c.refused(server, addr, err), raw.Close())
		}
		return conn, nil
	}
}
