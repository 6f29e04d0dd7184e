// device-plugin offers a list of devices to a kubelet as an extended resource, each with its NUMA node, on the kubelet's own stub of
// the device plugin interface: a stand-in for the SR-IOV device plugin and for vendors' plugins of GPUs. Several may run on a node,
// one for each --resource.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"k8s.io/klog/v2"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	plugin "k8s.io/kubernetes/pkg/kubelet/cm/devicemanager/plugin/v1beta1"
)

func main() {
	resource := flag.String("resource", "", "name of the resource, as a pod asks for it")
	list := flag.String("devices", "", "ID@NUMA,ID@NUMA,…")
	variable := flag.String("env", "", "environment variable that tells a container its devices' ids")
	nodes := flag.Bool("tell-nodes", false, "the variable says ID@NUMA of each device, where nothing else tells its NUMA node")
	root := flag.String("kubelet-root", "/var/lib/kubelet", "the kubelet's --root-dir")
	flag.Parse()
	if err := run(*resource, *list, *variable, *nodes, filepath.Join(*root, "device-plugins")); err != nil {
		fmt.Fprintln(os.Stderr, "device-plugin:", err)
		os.Exit(1)
	}
}

func run(resource, list, variable string, tellsNodes bool, folder string) error {
	devices, err := parse(list)
	if err != nil {
		return err
	}
	entries := map[string]string{}
	for _, entry := range strings.Split(list, ",") {
		id, _, _ := strings.Cut(entry, "@")
		entries[id] = entry
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	socket := filepath.Join(folder, strings.ReplaceAll(resource, "/", "-")+".sock")
	server := plugin.NewDevicePluginStub(klog.FromContext(ctx), devices, socket, resource, false, false)
	server.SetAllocFunc(func(request *pluginapi.AllocateRequest, _ map[string]*pluginapi.Device) (*pluginapi.AllocateResponse, error) {
		response := &pluginapi.AllocateResponse{}
		for _, container := range request.ContainerRequests {
			told := make([]string, len(container.DevicesIds))
			for at, id := range container.DevicesIds {
				told[at] = id
				if tellsNodes {
					told[at] = entries[id]
				}
			}
			envs := map[string]string{variable: strings.Join(told, ",")}
			response.ContainerResponses = append(response.ContainerResponses, &pluginapi.ContainerAllocateResponse{Envs: envs})
		}
		return response, nil
	})
	if err := server.Start(ctx); err != nil {
		return fmt.Errorf("cannot serve at %s: %w", socket, err)
	}
	if err := server.Register(ctx, filepath.Join(folder, "kubelet.sock"), resource, folder); err != nil {
		return fmt.Errorf("the kubelet does not register %s: %w", resource, err)
	}
	<-ctx.Done()
	return server.Stop(klog.FromContext(ctx))
}

// parse reads "0000:11:10.0@0,0000:41:10.0@1".
func parse(list string) ([]*pluginapi.Device, error) {
	var devices []*pluginapi.Device
	for _, entry := range strings.Split(list, ",") {
		id, numa, found := strings.Cut(entry, "@")
		node, err := strconv.ParseInt(numa, 10, 64)
		if !found || id == "" || err != nil {
			return nil, fmt.Errorf("a device is ID@NUMA, not %q", entry)
		}
		topology := &pluginapi.TopologyInfo{Nodes: []*pluginapi.NUMANode{{ID: node}}}
		devices = append(devices, &pluginapi.Device{ID: id, Health: pluginapi.Healthy, Topology: topology})
	}
	return devices, nil
}
