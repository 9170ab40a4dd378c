// Command colod-etcd is colod for nodes whose arbiter may be an etcd cluster. It takes the same configuration; everything else is the same too.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/coloctl/coloctl/colo/arbiter/etcd"
	"github.com/coloctl/coloctl/colo/config"
	"github.com/coloctl/coloctl/internal/daemon"
	"github.com/coloctl/coloctl/internal/version"
)

func main() {
	p := daemon.Program{Name: "colod-etcd", Version: version.String(), Arbiters: map[string]daemon.ArbiterFunc{config.ArbiterEtcd: open}}
	os.Exit(p.Main(os.Args[1:]))
}

// open makes the arbiter that a node's file describes.
func open(ctx context.Context, env daemon.Env) (daemon.Arbiter, error) {
	e := env.Config.Arbiter.Etcd
	o := etcd.Options{Node: env.Config.Node, Endpoints: e.Endpoints, Prefix: e.Prefix, Username: e.Username, ClusterID: e.ClusterID, Timeout: time.Duration(e.Timeout)}
	if e.PasswordFile != "" {
		text, err := os.ReadFile(e.PasswordFile)
		if err != nil {
			return daemon.Arbiter{}, err
		}
		if o.Password = strings.TrimSpace(string(text)); o.Password == "" {
			return daemon.Arbiter{}, fmt.Errorf("%s is empty", e.PasswordFile)
		}
	}
	var err error
	if o.TLS, err = tlsConfig(e); err != nil {
		return daemon.Arbiter{}, err
	}
	a, err := etcd.New(ctx, o)
	if err != nil {
		return daemon.Arbiter{}, err
	}
	return daemon.Arbiter{Arbiter: a, Name: "etcd " + strings.Join(e.Endpoints, ", "), Close: a.Close}, nil
}

// tlsConfig is nil when the file names neither an authority nor a certificate: then the endpoints say whether there is TLS.
func tlsConfig(e *config.Etcd) (*tls.Config, error) {
	if e.CA == "" && e.Cert == "" {
		return nil, nil
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12}
	if e.CA != "" {
		pem, err := os.ReadFile(e.CA)
		if err != nil {
			return nil, err
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: %w", e.CA, errors.New("no certificate in it"))
		}
	}
	if e.Cert != "" {
		// Read at each connection, so that it can be replaced.
		out.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(e.Cert, e.Key)
			return &cert, err
		}
	}
	return out, nil
}
