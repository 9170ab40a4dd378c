package setup

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/coloctl/coloctl/colo"
)

// Site is two hosts, perhaps a witness, and perhaps a first VM.
type Site struct {
	Name    string   `yaml:"name,omitempty"` // of the context that is made for the person; site
	Nodes   []Node   `yaml:"nodes"`
	Bridges []string `yaml:"bridges,omitempty"` // that VMs' NICs are put into; the same on both
	Accel   string   `yaml:"accel,omitempty"`   // kvm (default) or tcg
	Witness *Witness `yaml:"witness,omitempty"`
	// Arbiter must be none where there is no witness: to have none must be said.
	Arbiter string `yaml:"arbiter,omitempty"`
	VM      string `yaml:"vm,omitempty"` // file with the spec of the first VM
	APIPort int    `yaml:"api-port,omitempty"`
}

// Node is one of the two hosts.
type Node struct {
	Name  string   `yaml:"name"`
	Host  string   `yaml:"host"`  // its address for the other machines and for people
	Links []string `yaml:"links"` // its addresses on the replication networks, in the same order on both
	SSH   string   `yaml:"ssh,omitempty"`
}

// Witness is the third machine.
type Witness struct {
	Name    string `yaml:"name"`
	Address string `yaml:"address"` // host:port
	SSH     string `yaml:"ssh,omitempty"`
}

const (
	defaultAPIPort = 7789
	noArbiter      = "none"
)

// LoadSite reads a site's file. Its VM's file is relative to it.
func LoadSite(file string) (*Site, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	s := &Site{}
	err = colo.ReadYAML(data, file, "site", s, func() error {
		err := s.Validate()
		if s.VM != "" && !filepath.IsAbs(s.VM) {
			s.VM = filepath.Join(filepath.Dir(file), s.VM)
		}
		if s.VM != "" {
			if _, serr := os.Stat(s.VM); serr != nil {
				err = errors.Join(err, &colo.InvalidSpecError{Field: "$.vm", Msg: serr.Error() + ": expected a file with the spec of the first VM"})
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// ParseSite reads a site, strictly.
func ParseSite(data []byte, file string) (*Site, error) {
	s := &Site{}
	if err := colo.ReadYAML(data, file, "site", s, s.Validate); err != nil {
		return nil, err
	}
	return s, nil
}

// hostName is what the resolver takes.
var hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*\.?$`)

var name = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,29}[a-z0-9])?$`)

// Validate fills in defaults and reports every wrong field, joined; each is a [*colo.InvalidSpecError].
func (s *Site) Validate() error {
	if s.Name == "" {
		s.Name = "site"
	}
	if s.Accel == "" {
		s.Accel = "kvm"
	}
	if s.APIPort == 0 {
		s.APIPort = defaultAPIPort
	}
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, &colo.InvalidSpecError{Field: "$." + field, Msg: fmt.Sprintf(format, args...)})
	}
	names := map[string]bool{}
	named := func(field, n string) {
		if !name.MatchString(n) {
			bad(field, "%q is not a name: expected a letter, then at most 30 lower-case letters, digits or dashes", n)
		} else if names[n] {
			bad(field, "%q is used twice", n)
		}
		names[n] = true
	}
	if !name.MatchString(s.Name) {
		bad("name", "%q is not a name", s.Name)
	}
	if s.Accel != "kvm" && s.Accel != "tcg" {
		bad("accel", "%q: expected kvm or tcg", s.Accel)
	}
	if len(s.Nodes) != 2 {
		bad("nodes", "%d: expected two: a node has one peer in this version", len(s.Nodes))
	}
	used := map[netip.Addr]bool{}
	for i, n := range s.Nodes {
		at := fmt.Sprintf("nodes[%d]", i)
		named(at+".name", n.Name)
		if n.Host == "" {
			bad(at+".host", "missing: the address at which the other machines reach this one")
		} else if _, err := netip.ParseAddr(n.Host); err != nil && !hostName.MatchString(n.Host) {
			bad(at+".host", "%q: expected an IP address or the name of a host", n.Host)
		}
		if len(n.Links) == 0 {
			bad(at+".links", "missing: at least one address on a replication network")
		} else if len(n.Links) != len(s.Nodes[0].Links) {
			bad(at+".links", "%d, but %s has %d: each link has an end on both nodes", len(n.Links), s.Nodes[0].Name, len(s.Nodes[0].Links))
		}
		for j, l := range n.Links {
			a, err := netip.ParseAddr(l)
			switch field := fmt.Sprintf("%s.links[%d]", at, j); {
			case err != nil:
				bad(field, "%q: expected an IP address", l)
			case used[a]:
				bad(field, "%s is used twice", a)
			default:
				used[a] = true
			}
		}
	}
	switch w := s.Witness; {
	case w == nil && s.Arbiter != noArbiter:
		bad("witness", "missing: name a third machine, or say arbiter: none; then after a loss only proof or a person lets the other copy go on")
	case w != nil && s.Arbiter != "":
		bad("arbiter", "the witness is the arbiter: leave this out")
	case w != nil:
		named("witness.name", w.Name)
		host, port, err := net.SplitHostPort(w.Address)
		if n, perr := strconv.Atoi(port); err != nil || perr != nil || n < 1 || n > 65535 || host == "" {
			bad("witness.address", "%q: expected host:port", w.Address)
		}
		for _, n := range s.Nodes {
			a, err := netip.ParseAddr(host)
			if n.Host == host || err == nil && used[a] {
				bad("witness.address", "%s is a node's: there it would die with the node", host)
				break
			}
		}
	}
	return errors.Join(errs...)
}

// Machines are the names of all, nodes first.
func (s *Site) Machines() []string {
	var out []string
	for _, n := range s.Nodes {
		out = append(out, n.Name)
	}
	if s.Witness != nil {
		out = append(out, s.Witness.Name)
	}
	return out
}

// SSH is how to reach a machine; empty if a person brings its bundle there.
func (s *Site) SSH(machine string) string {
	for _, n := range s.Nodes {
		if n.Name == machine {
			return n.SSH
		}
	}
	if s.Witness != nil && s.Witness.Name == machine {
		return s.Witness.SSH
	}
	return ""
}

// Addresses are where a node's daemon answers, the links first.
func (s *Site) Addresses(n Node) []string {
	var out []string
	port := strconv.Itoa(s.APIPort)
	for _, l := range n.Links {
		out = append(out, net.JoinHostPort(l, port))
	}
	return append(out, net.JoinHostPort(n.Host, port))
}

// Here finds the machine that this host is: the one that has its address. Empty if it is none.
func (s *Site) Here() (string, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	own := map[string]bool{}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() {
			own[n.IP.String()] = true
		}
	}
	for _, n := range s.Nodes {
		if own[n.Host] || own[n.Links[0]] {
			return n.Name, nil
		}
	}
	if s.Witness != nil {
		if host, _, err := net.SplitHostPort(s.Witness.Address); err == nil && own[host] {
			return s.Witness.Name, nil
		}
	}
	return "", nil
}
