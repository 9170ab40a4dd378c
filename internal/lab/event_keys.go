package lab

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/internal/netns"
)

// rotateKeys replaces the authority and everybody's key and certificate, as a person does with coloctl pki, while all daemons run. What the old authority has
// signed is refused at the end. Nothing is restarted.
var rotateKeys = undisturbed("the authority and all certificates are replaced", func(ctx context.Context, r *Run) error {
	l := r.Lab
	ca := l.path("ca")
	old, err := tls.LoadX509KeyPair(l.path(adminName, adminName+".pem"), l.path(adminName, adminName+".pem"))
	if err != nil {
		return err
	}
	if err := l.asAdmin(ctx, old); err != nil {
		return fmt.Errorf("before: %w", err)
	}
	r.Tell.Say("a new authority, trusted beside the old one")
	if err := pki.Rotate(ca, pki.AuthorityOptions{}); err != nil {
		return err
	}
	if err := l.spreadTrust(); err != nil {
		return err
	}
	if err := r.stillTogether(ctx); err != nil {
		return err
	}
	r.Tell.Say("new keys and certificates for everybody")
	for _, id := range identities {
		if _, err := pki.Issue(ca, pki.IssueOptions{Identity: id, Out: l.path(id.Name), Renew: true}); err != nil {
			return err
		}
		if err := r.stillTogether(ctx); err != nil {
			return fmt.Errorf("after the key of %s: %w", id.Name, err)
		}
	}
	r.Tell.Say("the end of the trust in the old authority")
	if err := pki.Retire(ca); err != nil {
		return err
	}
	if err := l.spreadTrust(); err != nil {
		return err
	}
	if err := r.stillTogether(ctx); err != nil {
		return err
	}
	renewed, err := tls.LoadX509KeyPair(l.path(adminName, adminName+".pem"), l.path(adminName, adminName+".pem"))
	if err != nil {
		return err
	}
	if err := l.asAdmin(ctx, renewed); err != nil {
		return fmt.Errorf("with the new certificate: %w", err)
	}
	if err := l.asAdmin(ctx, old); err == nil {
		return fmt.Errorf("a daemon still accepts a certificate of the old authority")
	}
	return nil
})

// spreadTrust brings the authority's ca.crt to everybody, in one move each.
func (l *Lab) spreadTrust() error {
	text, err := os.ReadFile(l.path("ca", pki.TrustFile))
	if err != nil {
		return err
	}
	for _, id := range identities {
		to := l.path(id.Name, pki.TrustFile)
		if err := os.WriteFile(to+".new", text, 0o600); err != nil {
			return err
		}
		if err := os.Rename(to+".new", to); err != nil {
			return err
		}
	}
	return nil
}

// stillTogether waits until new connections have been made between all daemons and the VM is protected: a verdict asks the peer and the arbiter.
func (r *Run) stillTogether(ctx context.Context) error {
	if err := pause(ctx, time.Second); err != nil { // the daemons look at the files at their next connection
		return err
	}
	return r.protectedStill(ctx)
}

// asAdmin asks a daemon over its network with a certificate. Whether the daemon is the right one is not what is looked at.
func (l *Lab) asAdmin(ctx context.Context, cert tls.Certificate) error {
	client := &http.Client{Timeout: statusTimeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true}, //nolint:gosec // see above
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return netns.Dial(ctx, l.Topology.Witness.Netns(), network, addr)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+hostPort(NodeNames[0], apiPort)+"/v1/node", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the daemon answers %s", resp.Status)
	}
	return nil
}

// identities are all that have a certificate in the lab; each has a folder of its name.
var identities = []pki.Identity{
	{Role: pki.Node, Name: NodeNames[0]}, {Role: pki.Node, Name: NodeNames[1]}, {Role: pki.Witness, Name: witnessName}, {Role: pki.Admin, Name: adminName},
}
