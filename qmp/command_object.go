package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
)

// ChardevSocket is the backend of a socket chardev. Exactly one of Inet and Unix
// is set.
type ChardevSocket struct {
	Inet     *InetAddr
	Unix     string // a path
	Server   bool   // listen, without waiting for the peer
	NoDelay  bool   // TCP only
	TLSCreds string // id of a tls-creds object
	TLSAuthz string

	// ReconnectMS is the pause between attempts of a client to connect
	// again, in milliseconds; 0 for none. QEMU before 9.2 takes whole seconds
	// only, to which it is rounded up there.
	ReconnectMS int
}

// ChardevAddSocket makes a socket chardev. A client (Server false) connects
// before this returns, which takes as long as it takes.
func (c *Client) ChardevAddSocket(ctx context.Context, id string, s ChardevSocket) error {
	data := struct {
		Addr        json.RawMessage `json:"addr"`
		Server      bool            `json:"server"`
		Wait        *bool           `json:"wait,omitempty"`
		NoDelay     bool            `json:"nodelay,omitempty"`
		TLSCreds    string          `json:"tls-creds,omitempty"`
		TLSAuthz    string          `json:"tls-authz,omitempty"`
		ReconnectMS int             `json:"reconnect-ms,omitempty"`
		Reconnect   int             `json:"reconnect,omitempty"`
	}{Server: s.Server, NoDelay: s.NoDelay, TLSCreds: s.TLSCreds, TLSAuthz: s.TLSAuthz, ReconnectMS: s.ReconnectMS}
	switch {
	case s.Inet != nil && s.Unix == "":
		data.Addr = s.Inet.Legacy()
	case s.Inet == nil && s.Unix != "":
		data.Addr = UnixLegacy(s.Unix)
	default:
		return errors.New("qmp: chardev-add: give either an inet address or a unix path")
	}
	if s.Server {
		data.Wait = new(bool)
	}
	add := func() error {
		return c.Execute(ctx, "chardev-add", map[string]any{
			"id":      id,
			"backend": map[string]any{"type": "socket", "data": data},
		}, nil)
	}
	err := add()
	if s.ReconnectMS > 0 && names(err, "reconnect-ms") {
		data.ReconnectMS, data.Reconnect = 0, (s.ReconnectMS+999)/1000
		err = add()
	}
	return err
}

// ChardevRemove removes a chardev that nothing uses.
func (c *Client) ChardevRemove(ctx context.Context, id string) error {
	return c.Execute(ctx, "chardev-remove", map[string]string{"id": id}, nil)
}

// Chardev is an element of query-chardev.
type Chardev struct {
	Label    string `json:"label"`
	Filename string `json:"filename"` // tells whether a socket is connected, in QEMU's words
	Frontend bool   `json:"frontend-open"`
}

// QueryChardev lists the chardevs.
func (c *Client) QueryChardev(ctx context.Context) ([]Chardev, error) {
	var l []Chardev
	err := c.Execute(ctx, "query-chardev", nil, &l)
	return l, err
}

// ObjectAdd makes a QOM object, such as a net filter, with these properties.
func (c *Client) ObjectAdd(ctx context.Context, qomType, id string, props map[string]any) error {
	args := make(map[string]any, len(props)+2)
	maps.Copy(args, props)
	args["qom-type"], args["id"] = qomType, id
	return c.Execute(ctx, "object-add", args, nil)
}

// ObjectDel deletes an object that was made by ObjectAdd or -object.
func (c *Client) ObjectDel(ctx context.Context, id string) error {
	return c.Execute(ctx, "object-del", map[string]string{"id": id}, nil)
}

// QOMSet sets a property of the object at a path such as "/objects/mirror-net0".
func (c *Client) QOMSet(ctx context.Context, path, property string, value any) error {
	return c.Execute(ctx, "qom-set", struct {
		Path     string `json:"path"`
		Property string `json:"property"`
		Value    any    `json:"value"`
	}{path, property, value}, nil)
}

// QOMGet reads a property into out.
func (c *Client) QOMGet(ctx context.Context, path, property string, out any) error {
	return c.Execute(ctx, "qom-get", map[string]string{"path": path, "property": property}, out)
}

// QOMProperty is an element of qom-list.
type QOMProperty struct {
	Name string `json:"name"`
	Type string `json:"type"` // "child<…>" for objects below
}

// QOMList lists the properties and children of an object.
func (c *Client) QOMList(ctx context.Context, path string) ([]QOMProperty, error) {
	var l []QOMProperty
	err := c.Execute(ctx, "qom-list", map[string]string{"path": path}, &l)
	return l, err
}
