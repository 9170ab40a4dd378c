package setup

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/config"
)

// ErrBundle is returned for a file that is no bundle, or not a whole one.
var ErrBundle = errors.New("not a usable bundle")

// Names of files in a bundle.
const (
	NodeFile    = "colod.yaml"
	WitnessFile = "witness.yaml"
	KeyFile     = "heartbeat.key"
	bundleLimit = 1 << 20 // bytes
)

// Bundle is all that one machine needs: files for its configuration folder.
type Bundle struct {
	Machine string
	Witness bool // not a node
	Files   map[string][]byte
}

// config is the name of the file that says what the machine is.
func (b *Bundle) config() string {
	if b.Witness {
		return WitnessFile
	}
	return NodeFile
}

func (b *Bundle) service() string {
	if b.Witness {
		return "colod-witness.service"
	}
	return "colod.service"
}

// secret says whether only the owner may read a file.
func secret(file string) bool { return strings.HasSuffix(file, ".pem") || file == KeyFile }

// Tar writes the bundle; the same content gives the same bytes.
func (b *Bundle) Tar() ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, n := range slices.Sorted(maps.Keys(b.Files)) {
		mode := int64(0o644)
		if secret(n) {
			mode = 0o600
		}
		if err := w.WriteHeader(&tar.Header{Name: n, Mode: mode, Size: int64(len(b.Files[n])), Format: tar.FormatUSTAR}); err != nil {
			return nil, err
		}
		if _, err := w.Write(b.Files[n]); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return out.Bytes(), err
}

// ReadBundle reads what Tar wrote. It takes no file but those that a bundle has, so nothing in it can get anywhere else.
func ReadBundle(r io.Reader) (*Bundle, error) {
	b := &Bundle{Files: map[string][]byte{}}
	in := tar.NewReader(io.LimitReader(r, bundleLimit))
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBundle, err)
		}
		known := slices.Contains([]string{NodeFile, WitnessFile, KeyFile, pki.TrustFile}, h.Name) ||
			filepath.Ext(h.Name) == ".pem" && name.MatchString(strings.TrimSuffix(h.Name, ".pem"))
		if _, twice := b.Files[h.Name]; h.Typeflag != tar.TypeReg || !known || twice {
			return nil, fmt.Errorf("%w: unexpected %q in it", ErrBundle, h.Name)
		}
		if b.Files[h.Name], err = io.ReadAll(in); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBundle, err)
		}
	}
	_, node := b.Files[NodeFile]
	_, b.Witness = b.Files[WitnessFile]
	if node == b.Witness {
		return nil, fmt.Errorf("%w: expected either %s or %s in it", ErrBundle, NodeFile, WitnessFile)
	}
	want := []string{pki.TrustFile}
	if b.Witness {
		c, err := config.ParseWitness(b.Files[WitnessFile], WitnessFile)
		if err != nil {
			return nil, err
		}
		b.Machine = c.Name
	} else {
		c, err := config.Parse(b.Files[NodeFile], NodeFile)
		if err != nil {
			return nil, err
		}
		b.Machine, want = c.Node, append(want, KeyFile)
	}
	for _, n := range append(want, b.Machine+".pem") {
		if b.Files[n] == nil {
			return nil, fmt.Errorf("%w: %s is missing in it", ErrBundle, n)
		}
	}
	return b, nil
}

// nodeConfig is the configuration of a node. Its paths are relative to its folder.
func (s *Site) nodeConfig(i int) ([]byte, error) {
	n, other := s.Nodes[i], s.Nodes[1-i]
	links := func(addrs []string) []config.Link {
		var out []config.Link
		for j, a := range addrs {
			out = append(out, config.Link{Name: fmt.Sprintf("link%d", j), Address: a})
		}
		return out
	}
	c := config.Config{
		Node: n.Name, QEMU: config.QEMU{Accel: s.Accel}, Links: links(n.Links), Bridges: s.Bridges, Ports: config.Ports{First: 19000, Last: 19999},
		Peers:     []config.Peer{{Name: other.Name, API: s.Addresses(other), Links: links(other.Links)}},
		Heartbeat: config.Heartbeat{KeyFile: KeyFile},
		Arbiter:   config.Arbiter{Kind: config.ArbiterNone},
		API:       config.API{SocketGroup: "coloctl", Listen: s.Addresses(n)},
		TLS:       config.TLS{Identity: n.Name + ".pem", Trust: pki.TrustFile},
	}
	if s.Witness != nil {
		c.Arbiter = config.Arbiter{Kind: config.ArbiterWitness, Witnesses: []config.Witness{{Name: s.Witness.Name, Address: s.Witness.Address}}}
	}
	text, err := yaml.Marshal(c)
	if err != nil {
		return nil, err
	}
	text = append([]byte("# Node "+n.Name+", written by coloctl setup. Every field is explained in examples/daemon/n1.yaml.\n"), text...)
	_, err = config.Parse(text, NodeFile)
	return text, err
}

func (s *Site) witnessConfig() ([]byte, error) {
	w := s.Witness
	c := config.WitnessConfig{Name: w.Name, Listen: []string{w.Address}, TLS: config.TLS{Identity: w.Name + ".pem", Trust: pki.TrustFile}}
	text, err := yaml.Marshal(c)
	if err != nil {
		return nil, err
	}
	text = append([]byte("# Witness "+w.Name+", written by coloctl setup.\n"), text...)
	_, err = config.ParseWitness(text, WitnessFile)
	return text, err
}
