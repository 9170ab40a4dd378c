package config

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/internal/netns"
)

// Finding is one rule that was looked at on this host.
type Finding struct {
	Rule   string `json:"rule"`
	OK     bool   `json:"ok"`
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty"` // what to do when it is not ok
}

// expirySoon is how long before its end a certificate is worth a warning.
const expirySoon = 30 * 24 * time.Hour

// Inspect compares the configuration with this host, without changing anything.
func (c *Config) Inspect() []Finding {
	var out []Finding
	add := func(rule string, err error, good, remedy string) {
		if err != nil {
			out = append(out, Finding{Rule: rule, Text: err.Error(), Remedy: remedy})
			return
		}
		out = append(out, Finding{Rule: rule, OK: true, Text: good})
	}
	add("state folder", folder(c.StateDir), c.StateDir, "make it, owned by the daemon's user, mode 0700")
	add("storage folder", folder(c.StorageDir), c.StorageDir, "make it, or name another one in storage-dir")
	for name, argv := range map[string][]string{"qemu": c.QEMU.Command, "qemu-img": c.QEMU.Img} {
		path, err := exec.LookPath(argv[0])
		add(name, err, path, "install QEMU (Debian: qemu-system-x86, qemu-utils), or name it in qemu")
	}
	if c.QEMU.Accel == "kvm" {
		f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
		if err == nil {
			_ = f.Close()
		}
		add("kvm", err, "/dev/kvm", "switch virtualisation on in the firmware and load kvm, or set qemu.accel to tcg")
	}
	_, err := ReadKey(c.Heartbeat.KeyFile)
	add("heartbeat key", err, c.Heartbeat.KeyFile, "make one with coloctl pki heartbeat-key and copy it to both nodes")
	_, err = c.Credentials()
	add("certificate", err, c.TLS.Identity, "issue one with coloctl pki issue node "+c.Node)
	_, err = c.SocketGID()
	add("socket group", err, c.API.SocketGroup, "make the group, or name another one in api.socket-group")
	links, bridges := c.network()
	for i, l := range c.Links {
		add("link "+l.Name, links[i], l.Address, "give this host the address, or name the one it has")
	}
	for i, b := range c.Bridges {
		add("bridge "+b, bridges[i], b, "make the bridge; it needs no address of its own")
	}
	return out
}

func folder(path string) error {
	st, err := os.Stat(path)
	if err == nil && !st.IsDir() {
		err = fmt.Errorf("%s is no folder", path)
	}
	return err
}

// network looks at links and bridges where the node's QEMUs are.
func (c *Config) network() (links, bridges []error) {
	links, bridges = make([]error, len(c.Links)), make([]error, len(c.Bridges))
	err := netns.Do(c.Netns, func() error {
		have := map[string]bool{}
		addrs, err := net.InterfaceAddrs()
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				have[n.IP.String()] = true
			}
		}
		for i, l := range c.Links {
			if ip := net.ParseIP(l.Address); !have[ip.String()] && !ip.IsLoopback() {
				links[i] = fmt.Errorf("no interface has the address %s", l.Address)
			}
		}
		for i, b := range c.Bridges {
			link, err := netlink.LinkByName(b)
			switch {
			case errors.As(err, &netlink.LinkNotFoundError{}):
				bridges[i] = fmt.Errorf("there is no interface %s", b)
			case err != nil:
				bridges[i] = err
			case link.Type() != "bridge":
				bridges[i] = fmt.Errorf("%s is a %s, not a bridge", b, link.Type())
			}
		}
		return nil
	})
	if err != nil {
		for i := range links {
			links[i] = err
		}
		for i := range bridges {
			bridges[i] = err
		}
	}
	return links, bridges
}

// Credentials loads the node's certificate, which must carry its name.
func (c *Config) Credentials() (*pki.Credentials, error) {
	creds, err := pki.Load(pki.Files{Identity: c.TLS.Identity, Trust: c.TLS.Trust})
	if err != nil {
		return nil, err
	}
	if want := (pki.Identity{Role: pki.Node, Name: c.Node}); creds.Identity() != want {
		return nil, fmt.Errorf("%s is the certificate of %s, and this is %s: issue one for it, or copy the right file", c.TLS.Identity, creds.Identity(), want)
	}
	return creds, nil
}

// ExpiryWarning says that a certificate ends soon; empty if it doesn't.
func ExpiryWarning(creds *pki.Credentials) string {
	if left := time.Until(creds.NotAfter()); left < expirySoon {
		return fmt.Sprintf("the certificate of %s ends in %s: issue a new one", creds.Identity(), left.Round(time.Hour))
	}
	return ""
}

// SocketGID is the group of the API's socket; -1 if none is configured.
func (c *Config) SocketGID() (int, error) {
	if c.API.SocketGroup == "" {
		return -1, nil
	}
	if n, err := strconv.Atoi(c.API.SocketGroup); err == nil && n >= 0 {
		return n, nil
	}
	g, err := user.LookupGroup(c.API.SocketGroup)
	if err != nil {
		return -1, err
	}
	return strconv.Atoi(g.Gid)
}

// StateFile is the node's store.
func (c *Config) StateFile() string { return filepath.Join(c.StateDir, "state.db") }

// LedgerFile is where the node notes what it promised two witnesses.
func (c *Config) LedgerFile() string { return filepath.Join(c.StateDir, "witnesses.db") }
