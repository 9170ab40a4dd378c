package config

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api/pki"
)

// WitnessConfig is the configuration of a witness.
type WitnessConfig struct {
	Name   string   `yaml:"name"`              // in its certificate
	State  string   `yaml:"state,omitempty"`   // its file; /var/lib/coloctl/witness.db
	Listen []string `yaml:"listen"`            // address:port
	HostID string   `yaml:"host-id,omitempty"` // see [Config.HostID]
	TLS    TLS      `yaml:"tls"`
	Log    Log      `yaml:"log,omitempty"`
}

// LoadWitness reads a witness's file.
func LoadWitness(file string) (*WitnessConfig, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return ParseWitness(data, file)
}

// ParseWitness is [Parse] for a witness.
func ParseWitness(data []byte, file string) (*WitnessConfig, error) {
	c := &WitnessConfig{}
	err := colo.ReadYAML(data, file, "configuration", c, func() error {
		setDefault(&c.State, "/var/lib/coloctl/witness.db")
		c.Log.setDefaults()
		for _, p := range []*string{&c.State, &c.TLS.Identity, &c.TLS.Trust} {
			absolute(p, folderOf(file))
		}
		return c.Validate()
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Validate reports every wrong field, joined; each is a [*colo.InvalidSpecError].
func (c *WitnessConfig) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, &colo.InvalidSpecError{Field: "$." + field, Msg: fmt.Sprintf(format, args...)})
	}
	if !nodeName.MatchString(c.Name) {
		bad("name", "%q is not a name: expected a letter, then at most 30 lower-case letters, digits or dashes", c.Name)
	}
	if len(c.Listen) == 0 {
		bad("listen", "missing: where the nodes reach this witness, as address:port")
	}
	validateListen("listen", c.Listen, bad)
	c.TLS.validate(bad)
	c.Log.validate(bad)
	return errors.Join(errs...)
}

// Credentials loads the witness's certificate, which must carry its name.
func (c *WitnessConfig) Credentials() (*pki.Credentials, error) {
	return c.TLS.load(pki.Identity{Role: pki.Witness, Name: c.Name})
}

// Inspect is [Config.Inspect] for a witness.
func (c *WitnessConfig) Inspect() []Finding {
	var out findings
	out.add("state folder", folder(filepath.Dir(c.State)), filepath.Dir(c.State), "make it, owned by the daemon's user, mode 0700")
	creds, err := c.Credentials()
	out.add("certificate", usable(creds, err), c.TLS.Identity, "issue one with coloctl pki issue witness "+c.Name)
	out.addListen(c.Listen)
	return out
}

// usable says why credentials that were loaded don't help.
func usable(creds *pki.Credentials, err error) error {
	if err != nil {
		return err
	}
	return creds.Err()
}

func (t *TLS) validate(bad badFunc) {
	if t.Identity == "" {
		bad("tls.identity", "missing: the file NAME.pem that coloctl pki issue has made")
	}
	if t.Trust == "" {
		bad("tls.trust", "missing: the file ca.crt")
	}
}

func (t *TLS) load(want pki.Identity) (*pki.Credentials, error) {
	creds, err := pki.Load(pki.Files{Identity: t.Identity, Trust: t.Trust})
	if err != nil {
		return nil, err
	}
	if creds.Identity() != want {
		return nil, fmt.Errorf("%s is the certificate of %s, and this is %s: issue one for it, or copy the right file", t.Identity, creds.Identity(), want)
	}
	return creds, nil
}

func (l *Log) setDefaults() {
	setDefault(&l.Level, "info")
	setDefault(&l.Format, "text")
}

func (l *Log) validate(bad badFunc) {
	if _, ok := levels[l.Level]; !ok {
		bad("log.level", "%q: expected debug, info, warn or error", l.Level)
	}
	if l.Format != "text" && l.Format != "json" {
		bad("log.format", "%q: expected text or json", l.Format)
	}
}

func absolute(p *string, dir string) {
	if *p != "" && !filepath.IsAbs(*p) {
		*p = filepath.Join(dir, *p)
	}
}

func validateListen(field string, list []string, bad badFunc) {
	for i, a := range list {
		host, port, err := net.SplitHostPort(a)
		if err != nil || !isPort(port, 0) || (host != "" && net.ParseIP(host) == nil) {
			bad(fmt.Sprintf("%s[%d]", field, i), "%q: expected address:port", a)
		}
	}
}
