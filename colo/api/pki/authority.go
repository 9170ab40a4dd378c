package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// Names of the files.
const (
	AuthorityFile = "ca.pem" // in the authority's folder only
	TrustFile     = "ca.crt"
)

// Errors of the functions that make files.
var (
	// ErrExists is returned when a file that would be written is there already. Nothing was changed.
	ErrExists = errors.New("exists already")

	// ErrNoAuthority is returned when the folder holds no authority.
	ErrNoAuthority = errors.New("no certificate authority in this folder")

	// ErrRotating is returned by Rotate while the authority before the current one is still trusted.
	ErrRotating = errors.New("the last rotation isn't finished")
)

// Lifetimes and the allowance for clocks that are behind.
const (
	DefaultAuthorityLife = 10 * 365 * 24 * time.Hour
	DefaultLife          = 2 * 365 * 24 * time.Hour
	backdate             = 24 * time.Hour
)

// AuthorityOptions of InitCA and Rotate. The zero value is usable.
type AuthorityOptions struct {
	Name string        // shown in certificates. Default: coloctl
	Life time.Duration // Default: DefaultAuthorityLife
}

// InitCA makes a certificate authority in dir, which is made with mode 0700 if it isn't there. It returns [ErrExists] if it holds one already.
func InitCA(dir string, o AuthorityOptions) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return locked(dir, func() error {
		a, err := newAuthority(o)
		if err != nil {
			return err
		}
		for _, f := range []string{AuthorityFile, TrustFile} {
			if _, err := os.Lstat(filepath.Join(dir, f)); !errors.Is(err, fs.ErrNotExist) {
				return exists(filepath.Join(dir, f), err)
			}
		}
		// The trust first: an authority is one as soon as its key is there.
		if err := writeNew(filepath.Join(dir, TrustFile), 0o644, certPEM(a.cert)); err != nil {
			return err
		}
		return writeNew(filepath.Join(dir, AuthorityFile), 0o600, a.pem())
	})
}

// Rotate makes a new authority, which signs from now on, and leaves the old one trusted. See the package's description for what
// follows. It returns [ErrRotating] when there are two already.
func Rotate(dir string, o AuthorityOptions) error {
	return locked(dir, func() error {
		old, err := readAuthority(dir)
		if err != nil {
			return err
		}
		trust, err := readTrust(filepath.Join(dir, TrustFile))
		if err != nil {
			return err
		}
		// An authority in the file that never signed is what a rotation left that was killed: it is dropped here.
		if len(trust) > 1 && old.cert.Equal(trust[0]) {
			return fmt.Errorf("%w: %s still trusts %q; retire it first", ErrRotating, filepath.Join(dir, TrustFile), trust[1].Subject.CommonName)
		}
		a, err := newAuthority(o)
		if err != nil {
			return err
		}
		if err := replace(filepath.Join(dir, TrustFile), 0o644, append(certPEM(a.cert), certPEM(old.cert)...)); err != nil {
			return err
		}
		return replace(filepath.Join(dir, AuthorityFile), 0o600, a.pem())
	})
}

// Retire ends the trust in all authorities but the one that signs. Certificates by others are refused as soon as the new ca.crt is in place.
func Retire(dir string) error {
	return locked(dir, func() error {
		a, err := readAuthority(dir)
		if err != nil {
			return err
		}
		return replace(filepath.Join(dir, TrustFile), 0o644, certPEM(a.cert))
	})
}

// IssueOptions say for whom a certificate is.
type IssueOptions struct {
	Identity
	Hosts []string      // host names and addresses to be named besides, may be empty
	Life  time.Duration // Default: DefaultLife. Never longer than the authority's.
	// Out is the folder for NAME.pem and ca.crt. Default: the authority's.
	Out string
	// Renew replaces NAME.pem (with a new key) where it is there already and has the same identity. Without it that is ErrExists.
	Renew bool
}

// Issue makes a key and its certificate and returns the path of the file that holds both.
func Issue(dir string, o IssueOptions) (path string, err error) {
	if err := o.Validate(); err != nil {
		return "", err
	}
	if o.Out == "" {
		o.Out = dir
	}
	if o.Life <= 0 {
		o.Life = DefaultLife
	}
	path = filepath.Join(o.Out, o.Name+".pem")
	if filepath.Base(path) == AuthorityFile {
		return "", fmt.Errorf("%w: the name %q is the authority's", ErrIdentity, o.Name)
	}
	return path, locked(dir, func() error {
		a, err := readAuthority(dir)
		if err != nil {
			return err
		}
		if err := o.mayWrite(path); err != nil {
			return err
		}
		trust, err := os.ReadFile(filepath.Join(dir, TrustFile))
		if err != nil {
			return err
		}
		out, err := a.issue(o)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(o.Out, 0o700); err != nil {
			return err
		}
		if o.Out != dir {
			if err := replace(filepath.Join(o.Out, TrustFile), 0o644, trust); err != nil {
				return err
			}
		}
		if o.Renew {
			return replace(path, 0o600, out)
		}
		return writeNew(path, 0o600, out)
	})
}

func (o IssueOptions) mayWrite(path string) error {
	old, err := readIdentityFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case !o.Renew:
		return exists(path, nil)
	case err != nil:
		return err
	case old.id != o.Identity:
		return fmt.Errorf("%w: %s belongs to %s, not to %s", ErrExists, path, old.id, o.Identity)
	}
	return nil
}

type authority struct {
	key  crypto.Signer
	cert *x509.Certificate
}

func newAuthority(o AuthorityOptions) (authority, error) {
	if o.Name == "" {
		o.Name = "coloctl"
	}
	if o.Life <= 0 {
		o.Life = DefaultAuthorityLife
	}
	key, spki, err := newKey()
	if err != nil {
		return authority{}, err
	}
	// Each authority has another name, so that during a rotation a reader of certificates can tell them apart.
	sum := sha256.Sum256(spki)
	now := time.Now()
	t := &x509.Certificate{
		Subject:   pkix.Name{CommonName: o.Name + " CA " + hex.EncodeToString(sum[:4])},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(o.Life),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	cert, err := sign(t, t, key.Public(), key)
	return authority{key: key, cert: cert}, err
}

func (a authority) issue(o IssueOptions) ([]byte, error) {
	key, _, err := newKey()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	t := &x509.Certificate{
		Subject:   pkix.Name{CommonName: o.Name, OrganizationalUnit: []string{string(o.Role)}},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(o.Life),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		URIs:                  []*url.URL{o.uri()},
	}
	if !a.cert.NotAfter.After(now) {
		return nil, fmt.Errorf("the authority %q has expired on %s; rotate it", a.cert.Subject.CommonName, a.cert.NotAfter.Format(time.DateOnly))
	}
	if t.NotAfter.After(a.cert.NotAfter) {
		t.NotAfter = a.cert.NotAfter
	}
	if o.Role != Witness {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	if !o.Role.Person() {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		t.DNSNames = append(t.DNSNames, o.ServerName())
	}
	for _, h := range o.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
			continue
		}
		t.DNSNames = append(t.DNSNames, h)
	}
	cert, err := sign(t, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	return authority{key: key, cert: cert}.pem(), nil
}

func newKey() (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	return key, spki, err
}

func sign(t, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	t.SerialNumber = serial.Add(serial, big.NewInt(1))
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func (a authority) pem() []byte {
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		panic(err) // it is a key that newKey or a parser made
	}
	var b bytes.Buffer
	_ = pem.Encode(&b, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	b.Write(certPEM(a.cert))
	return b.Bytes()
}

func certPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}
