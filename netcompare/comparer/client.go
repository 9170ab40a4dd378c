package comparer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
)

// Client speaks to the comparer of a folder. It may be used concurrently.
type Client struct{ http http.Client }

// NewClient makes a client; it connects when it is used.
func NewClient(dir string) *Client {
	path := filepath.Join(dir, socketFile)
	return &Client{http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
		MaxIdleConns: 1,
	}}}
}

// Close lets go of idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status asks how the comparer is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return c.call(ctx, http.MethodGet, "/status", nil)
}

// Set changes the settings.
func (c *Client) Set(ctx context.Context, s Settings) (Status, error) {
	return c.call(ctx, http.MethodPut, "/settings", s)
}

// Checkpoint asks for a checkpoint and doesn't wait for it.
func (c *Client) Checkpoint(ctx context.Context) (Status, error) {
	return c.call(ctx, http.MethodPost, "/checkpoint", nil)
}

func (c *Client) call(ctx context.Context, method, path string, body any) (s Status, err error) {
	text, err := json.Marshal(body)
	if err != nil {
		return s, err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://comparer"+path, bytes.NewReader(text))
	if err != nil {
		return s, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return s, fmt.Errorf("comparer: %w", err)
	}
	defer resp.Body.Close()
	text, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return s, fmt.Errorf("comparer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return s, errors.New("comparer: " + strings.TrimSpace(string(text)))
	}
	return s, json.Unmarshal(text, &s)
}
