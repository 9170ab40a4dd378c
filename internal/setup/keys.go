package setup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/config"
)

// Keys is the folder with the authority, the heartbeats' key, everybody's certificate, and the bundles.
type Keys struct{ Dir string }

// Admin is whose certificate the person gets that sets the site up.
const Admin = "admin"

func (k Keys) path(file string) string { return filepath.Join(k.Dir, file) }

// Identity is the file with somebody's key and certificate.
func (k Keys) Identity(name string) string { return k.path(name + ".pem") }

// Trust is the file that says whose certificates are good.
func (k Keys) Trust() string { return k.path(pki.TrustFile) }

// BundleFile is where a machine's bundle lies.
func (k Keys) BundleFile(machine string) string { return k.path(machine + ".tar") }

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Plan makes what is missing in the folder for a site. Certificates that are there are left as they are; to renew one: coloctl pki issue --renew.
func (k Keys) Plan(s *Site) Plan {
	p := Plan{
		{"make a certificate authority in " + k.Dir, func() bool { return exists(k.path(pki.AuthorityFile)) },
			func(context.Context) error { return pki.InitCA(k.Dir, pki.AuthorityOptions{Name: "coloctl " + s.Name}) }},
		{"make the heartbeats' key " + k.path(KeyFile), func() bool { return exists(k.path(KeyFile)) },
			func(context.Context) error { return config.WriteKey(k.path(KeyFile)) }},
	}
	issue := func(role pki.Role, name string) {
		id := pki.Identity{Role: role, Name: name}
		p = append(p, Step{fmt.Sprintf("issue a certificate for %s: %s", id, k.Identity(name)), func() bool { return k.issued(id) },
			func(context.Context) error {
				_, err := pki.Issue(k.Dir, pki.IssueOptions{Identity: id})
				return err
			}})
	}
	for _, n := range s.Nodes {
		issue(pki.Node, n.Name)
	}
	if s.Witness != nil {
		issue(pki.Witness, s.Witness.Name)
	}
	issue(pki.Admin, Admin)
	for _, m := range s.Machines() {
		p = append(p, Step{"write the bundle of " + m + ": " + k.BundleFile(m), func() bool {
			want, err := k.Bundle(s, m)
			if err != nil {
				return false
			}
			text, err := want.Tar()
			have, rerr := os.ReadFile(k.BundleFile(m))
			return err == nil && rerr == nil && bytes.Equal(text, have)
		}, func(context.Context) error {
			b, err := k.Bundle(s, m)
			if err != nil {
				return err
			}
			text, err := b.Tar()
			if err != nil {
				return err
			}
			return writeFile(k.BundleFile(m), text, 0o600)
		}})
	}
	return p
}

// issued says whether the identity's file is there, and its own.
func (k Keys) issued(id pki.Identity) bool {
	c, err := pki.Load(pki.Files{Identity: k.Identity(id.Name), Trust: k.Trust()})
	return err == nil && c.Identity() == id
}

// Bundle puts a machine's bundle together.
func (k Keys) Bundle(s *Site, machine string) (*Bundle, error) {
	b := &Bundle{Machine: machine, Files: map[string][]byte{}}
	files := []string{machine + ".pem", pki.TrustFile}
	var text []byte
	err := fmt.Errorf("the site has no machine %s", machine)
	for i, n := range s.Nodes {
		if n.Name == machine {
			text, err = s.nodeConfig(i)
			files = append(files, KeyFile)
		}
	}
	if s.Witness != nil && s.Witness.Name == machine {
		b.Witness = true
		text, err = s.witnessConfig()
	}
	if err != nil {
		return nil, err
	}
	b.Files[b.config()] = text
	for _, f := range files {
		data, err := os.ReadFile(k.path(f))
		if err != nil {
			return nil, err
		}
		b.Files[f] = data
	}
	return b, nil
}

// writeFile writes a file that appears whole or not at all.
func writeFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-") // with mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
