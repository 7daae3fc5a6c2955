"""FedMQ over MQTT 5 brokers other than Mosquitto."""
