package api

import (
	"fmt"
	"strings"

	"github.com/coloctl/coloctl/colo/api/pki"
)

// Caller is who has sent a request.
type Caller struct {
	Name string   `json:"name"` // of the certificate, or of the local user
	Role pki.Role `json:"role"`
	Via  string   `json:"via"` // unix or tls
	PID  int      `json:"pid,omitempty"`
}

func (c Caller) String() string { return fmt.Sprintf("%s (%s)", c.Name, c.Role) }

// authorize returns nil if c may use rt.
func (s *Server) authorize(c Caller, rt *route) error {
	self := s.opts.Node.Info().Name
	if c.Role == pki.Node && (rt.least == pki.Node || rt.nodesToo) {
		switch {
		case s.opts.IsPeer(c.Name):
			return nil
		case c.Name == self:
			return apiErrorf(ErrForbidden, "the calling node's certificate carries this node's own name, %s: two nodes have the same name, or one certificate is on two hosts", self)
		}
		return apiErrorf(ErrForbidden, "%s is not a peer of %s: name it under peers in %s's configuration", c.Name, self, self)
	}
	if c.Role.Allows(rt.least) {
		return nil
	}
	need := string(rt.least)
	if rt.least.Person() {
		var roles []string
		for _, r := range pki.Roles() {
			if r.Allows(rt.least) {
				roles = append(roles, string(r))
			}
		}
		need = strings.Join(roles, " or ")
	}
	return apiErrorf(ErrForbidden, "%s needs the role %s; %s has %s", rt.task(), need, c.Name, c.Role)
}
