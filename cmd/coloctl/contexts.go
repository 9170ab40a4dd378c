package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/coloctl/coloctl/colo"
)

const (
	contextVariable = "COLOCTL_CONTEXT"
	// contextsVariable names the file with the contexts, instead of this person's.
	contextsVariable = "COLOCTL_CONTEXTS"
	localContext     = "local"
	// defaultSocket is where a daemon listens unless its configuration says otherwise.
	defaultSocket = "/run/coloctl/api.sock"
)

// nodesContext says where the daemons of one pair are, and as whom to speak to them.
type nodesContext struct {
	Name     string        `yaml:"name" json:"name"`
	Socket   string        `yaml:"socket,omitempty" json:"socket,omitempty"`
	Nodes    []contextNode `yaml:"nodes,omitempty" json:"nodes,omitempty"`
	Identity string        `yaml:"identity,omitempty" json:"identity,omitempty"` // NAME.pem, of coloctl pki issue
	Trust    string        `yaml:"trust,omitempty" json:"trust,omitempty"`       // ca.crt
}

type contextNode struct {
	Name      string   `yaml:"name" json:"name"`
	Addresses []string `yaml:"addresses" json:"addresses"` // host:port, in order of preference
}

// contextFile is what a person has set up. Its file is written with mode 0600.
type contextFile struct {
	Current  string         `yaml:"current,omitempty"`
	Contexts []nodesContext `yaml:"contexts"`
}

var errNoContext = errors.New("no such context")

var contextName = regexp.MustCompile(`^[a-z][a-z0-9.-]{0,62}$`)

func (c *nodesContext) validate() error {
	switch {
	case !contextName.MatchString(c.Name):
		return fmt.Errorf("context %q: expected a name of a-z, 0-9, - and ., beginning with a letter", c.Name)
	case c.Socket == "" && len(c.Nodes) == 0:
		return fmt.Errorf("context %s: expected a socket or nodes", c.Name)
	case c.Socket != "" && (len(c.Nodes) > 0 || c.Identity != "" || c.Trust != ""):
		return fmt.Errorf("context %s: expected a socket or nodes with certificates, not both", c.Name)
	case c.Socket == "" && (c.Identity == "" || c.Trust == ""):
		return fmt.Errorf("context %s: nodes need an identity and a trust file (see: coloctl pki issue)", c.Name)
	}
	var seen []string
	for _, n := range c.Nodes {
		if n.Name == "" || len(n.Addresses) == 0 {
			return fmt.Errorf("context %s: each node needs a name and an address", c.Name)
		}
		for _, a := range n.Addresses {
			if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" {
				return fmt.Errorf("context %s: address %q of node %s: expected HOST:PORT, such as 192.0.2.11:7789", c.Name, a, n.Name)
			}
		}
		if slices.Contains(seen, n.Name) {
			return fmt.Errorf("context %s: node %s is there twice", c.Name, n.Name)
		}
		seen = append(seen, n.Name)
	}
	return nil
}

func (c *nodesContext) where() string {
	if c.Socket != "" {
		return c.Socket
	}
	var out []string
	for _, n := range c.Nodes {
		out = append(out, n.Name+"="+strings.Join(n.Addresses, ","))
	}
	return strings.Join(out, " ")
}

// configFolder is where this person's files are.
func configFolder() (string, error) {
	base, err := os.UserConfigDir()
	return filepath.Join(base, "coloctl"), err
}

func contextPath() (string, error) {
	if path := os.Getenv(contextsVariable); path != "" {
		return path, nil
	}
	dir, err := configFolder()
	return filepath.Join(dir, "contexts.yaml"), err
}

// readContexts reads the file; without one there is only the local context.
func readContexts() (*contextFile, error) {
	path, err := contextPath()
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &contextFile{}, nil
	}
	if err != nil {
		return nil, err
	}
	f := &contextFile{}
	if len(bytes.TrimSpace(data)) == 0 {
		return f, nil
	}
	if err := colo.ReadYAML(data, path, "contexts", f, f.check); err != nil {
		return nil, &usageError{err}
	}
	for i := range f.Contexts {
		c := &f.Contexts[i]
		for _, p := range []*string{&c.Socket, &c.Identity, &c.Trust} {
			if *p != "" && !filepath.IsAbs(*p) {
				*p = filepath.Join(filepath.Dir(path), *p)
			}
		}
	}
	return f, nil
}

func (f *contextFile) check() error {
	var errs []error
	for i := range f.Contexts {
		if err := f.Contexts[i].validate(); err != nil {
			errs = append(errs, &colo.InvalidSpecError{Field: fmt.Sprintf("$.contexts[%d]", i), Msg: err.Error()})
		}
	}
	return errors.Join(errs...)
}

// write replaces the file in one step.
func (f *contextFile) write() error {
	path, err := contextPath()
	if err != nil {
		return err
	}
	data, err := yaml.Marshal(f)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	t, err := os.CreateTemp(filepath.Dir(path), ".contexts-") // with mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(t.Name())
	_, err = t.Write(data)
	if err := errors.Join(err, t.Sync(), t.Close()); err != nil {
		return err
	}
	return os.Rename(t.Name(), path)
}

// all returns the contexts with the local one, which is there unless the file has one of its name.
func (f *contextFile) all() []nodesContext {
	if slices.ContainsFunc(f.Contexts, func(c nodesContext) bool { return c.Name == localContext }) {
		return f.Contexts
	}
	return append([]nodesContext{{Name: localContext, Socket: defaultSocket}}, f.Contexts...)
}

func (f *contextFile) find(name string) (*nodesContext, error) {
	all := f.all()
	var names []string
	for i := range all {
		if all[i].Name == name {
			return &all[i], nil
		}
		names = append(names, all[i].Name)
	}
	return nil, &usageError{fmt.Errorf("%w: %q; there are: %s", errNoContext, name, strings.Join(names, ", "))}
}

// current is the context that is used when none is named.
func (f *contextFile) current() string {
	if f.Current != "" {
		return f.Current
	}
	return localContext
}

func chosenContext(name string) (*nodesContext, error) {
	f, err := readContexts()
	if err != nil {
		return nil, err
	}
	if name == "" {
		name = f.current()
	}
	return f.find(name)
}
