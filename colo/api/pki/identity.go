package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Errors about who somebody is.
var (
	// ErrIdentity is returned for a name or role that can't be put into a certificate, and for a certificate that isn't ours.
	ErrIdentity = errors.New("not a valid identity")

	// ErrNoCertificate is returned for a request or connection without a verified client certificate.
	ErrNoCertificate = errors.New("no client certificate")
)

// Role is what a certificate is for.
type Role string

// Roles. The last three are operators', each may do what the one before it may.
const (
	Node     Role = "node"     // a host that runs VMs
	Witness  Role = "witness"  // an arbiter
	Viewer   Role = "viewer"   // may look
	Operator Role = "operator" // may also protect, switch over, start and stop
	Admin    Role = "admin"    // may also create and delete VMs, force failovers, change nodes
)

var operatorRoles = []Role{Viewer, Operator, Admin}

// Roles lists them all.
func Roles() []Role { return append([]Role{Node, Witness}, operatorRoles...) }

// Person says whether the role is one of the operators'.
func (r Role) Person() bool { return slices.Contains(operatorRoles, r) }

// Allows says whether an operator of this role may do what needs the given one. Nodes and witnesses are no operators.
func (r Role) Allows(need Role) bool {
	have, want := slices.Index(operatorRoles, r), slices.Index(operatorRoles, need)
	return want >= 0 && have >= want
}

// Identity is who a certificate speaks for.
type Identity struct {
	Role Role
	Name string
}

// Names are those of a DNS label, so that they can be one. Case is refused instead of folded: two nodes A and a must not be taken for one.
var nameRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Validate wraps [ErrIdentity].
func (id Identity) Validate() error {
	if !slices.Contains(Roles(), id.Role) {
		return fmt.Errorf("%w: role %q is none of %v", ErrIdentity, id.Role, Roles())
	}
	if !nameRE.MatchString(id.Name) {
		return fmt.Errorf("%w: name %q must be 1 to 63 small letters, digits and hyphens, with no hyphen at its ends", ErrIdentity, id.Name)
	}
	return nil
}

// String returns "node alpha".
func (id Identity) String() string { return string(id.Role) + " " + id.Name }

// ServerName is the DNS name in the certificate of a server with this identity. It is never looked up.
func (id Identity) ServerName() string { return id.Name + "." + string(id.Role) + ".coloctl.internal" }

const urnPrefix = "coloctl:"

func (id Identity) uri() *url.URL {
	return &url.URL{Scheme: "urn", Opaque: urnPrefix + string(id.Role) + ":" + id.Name}
}

// IdentityOf reads a certificate. It must have been verified before.
func IdentityOf(c *x509.Certificate) (Identity, error) {
	var found []Identity
	for _, u := range c.URIs {
		rest, ok := strings.CutPrefix(u.Opaque, urnPrefix)
		if u.Scheme != "urn" || !ok {
			continue
		}
		role, name, _ := strings.Cut(rest, ":")
		id := Identity{Role: Role(role), Name: name}
		if err := id.Validate(); err != nil {
			return Identity{}, err
		}
		found = append(found, id)
	}
	if len(found) != 1 {
		return Identity{}, fmt.Errorf("%w: certificate of %q names %d of our identities", ErrIdentity, c.Subject.CommonName, len(found))
	}
	return found[0], nil
}

// PeerIdentity says who is at the other end of a connection whose handshake is done and whose certificate was verified.
func PeerIdentity(cs *tls.ConnectionState) (Identity, error) {
	if cs == nil || len(cs.VerifiedChains) == 0 || len(cs.VerifiedChains[0]) == 0 {
		return Identity{}, ErrNoCertificate
	}
	return IdentityOf(cs.VerifiedChains[0][0])
}

// Caller says who sent a request.
func Caller(r *http.Request) (Identity, error) { return PeerIdentity(r.TLS) }
